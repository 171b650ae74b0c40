"""The machines: what state they are in, making them and deleting them."""

import json
import sys
import time
from typing import Any

from tpu_scripts import commands
from tpu_scripts.errors import LOST, Stop
from tpu_scripts.gcloud import Gcloud, GcloudError
from tpu_scripts.settings import Settings
from tpu_scripts.states import ENDED, GONE, NOT_FOUND, QUEUEING, Node, Queued


def queued(settings: Settings, gcloud: Gcloud) -> Queued:
  """Asks for the queued resource.

  Raises:
    GcloudError: for any reason but that there is none.
  """
  found = _described(commands.describe(settings), gcloud)
  if found is None:
    return Queued('ACTIVE' if gcloud.dry else NOT_FOUND, settings.label)
  state = found.get('state', {})
  specs = found.get('tpu', {}).get('nodeSpec') or [{}]
  label = specs[0].get('node', {}).get('labels', {}).get(commands.LABEL, '')
  why = state.get('failedData', {}).get('error', {}).get('message', '')
  return Queued(state.get('state', 'UNKNOWN'), label, why)


def nodes(settings: Settings, gcloud: Gcloud) -> tuple[Node, ...]:
  """Asks for every node.

  Raises:
    GcloudError: for any reason but that there is none of that name.
  """
  found = []
  for name in commands.nodes(settings):
    node = _described(commands.describe_node(settings, name), gcloud)
    if gcloud.dry:
      found.append(Node(name, 'READY', 1))
    elif node is None:
      found.append(Node(name, NOT_FOUND))
    else:
      workers = len(node.get('networkEndpoints', []))
      found.append(Node(name, node.get('state', 'UNKNOWN'), workers))
  return tuple(found)


def _described(argv: list[str], gcloud: Gcloud) -> dict[str, Any] | None:
  try:
    text = gcloud.read(argv)
    return json.loads(text) if text.strip() else None
  except GcloudError as e:
    # Only if it says so of this very name: what follows may be deleting and creating.
    if e.kind == 'not found' and argv[5] in e.stderr:
      return None
    raise
  except ValueError as e:
    raise GcloudError(f'gcloud describe answered no JSON: {text[:80]!r}', 'other') from e


def create(
  settings: Settings, gcloud: Gcloud, agreed: bool, again: bool, poll: float | None
) -> None:
  """Makes the machines unless they are there, and waits for them.

  Args:
    agreed: The costs were agreed to on the command line; otherwise they are to be typed.
    again: Machines that ended are deleted first.
    poll: Seconds between two looks; None does not wait.

  Raises:
    Stop: the name is another's, the costs were not agreed to, or the machines did not come.
  """
  there = queued(settings, gcloud)
  if there.state in ENDED and not again:
    raise Stop(
      f'{settings["NAME"]} is {there.state} {there.why}: it never comes back; give --recreate to '
      'delete it and create it again',
      LOST,
    )
  refuse_others(settings, there)
  if gcloud.dry or there.state == NOT_FOUND or there.state in ENDED:
    agree(settings, agreed or gcloud.dry)
    if there.state in ENDED:
      delete(settings, gcloud)
    request(settings, gcloud)
  if poll is not None:
    wait(settings, gcloud, poll)


def request(settings: Settings, gcloud: Gcloud) -> None:
  """Asks for the machines and does not wait for them."""
  gcloud.call(commands.create(settings), timeout=300)


def delete(settings: Settings, gcloud: Gcloud) -> None:
  """Deletes the machines and waits until they are gone."""
  gcloud.call(commands.delete(settings), timeout=1200)


def refuse_others(settings: Settings, there: Queued) -> None:
  """Raises Stop if the name is taken by machines that were not made from these settings."""
  if there.state != NOT_FOUND and there.label != settings.label:
    label = f'has the label {there.label}' if there.label else 'has no label of ours'
    raise Stop(
      f'NAME={settings["NAME"]} is taken: the {there.state} queued resource of that name {label} '
      f'and these settings are {settings.label}; choose another NAME, or the settings of that one'
    )


def agree(settings: Settings, agreed: bool) -> None:
  """States the costs and, unless they were agreed to, asks for the name to be typed."""
  print(settings.cost(), file=sys.stderr)
  confirm(settings, agreed, 'to pay for it')


def confirm(settings: Settings, agreed: bool, what: str) -> None:
  """Asks for the name to be typed unless that was `agreed`.

  Raises:
    Stop: it was not typed, or nobody is there.
  """
  name = settings['NAME']
  if agreed:
    return
  if not sys.stdin.isatty():
    raise Stop(f'nobody is there to agree {what} ({name}): give --yes')
  print(f'Type {name} {what}: ', end='', file=sys.stderr, flush=True)
  if sys.stdin.readline().strip() != name:
    raise Stop('not agreed to; nothing was done')


def wait(settings: Settings, gcloud: Gcloud, poll: float) -> None:
  """Waits until the queued resource is ACTIVE and its nodes are READY.

  While it waits for capacity the limit is VALID_UNTIL, after which it is FAILED; machines that are
  being made have WAIT_MINUTES.

  Raises:
    Stop: it ended, there is none, or the time is up.
  """
  since, told = None, ''
  while True:
    there = queued(settings, gcloud)
    states = [node.state for node in nodes(settings, gcloud)] if there.state == 'ACTIVE' else []
    if gcloud.dry or (states and set(states) == {'READY'}):
      return
    if there.state == NOT_FOUND or there.state in ENDED or set(GONE) & set(states):
      seen = ', '.join([there.state, *states])
      raise Stop(f'{settings["NAME"]} is {seen} {there.why}: there are no machines', LOST)
    if there.state not in QUEUEING:
      since = since or time.monotonic()
      if time.monotonic() - since > 60 * float(settings['WAIT_MINUTES']):
        raise Stop(f'{settings["NAME"]} is not ready after WAIT_MINUTES; it is left as it is', LOST)
    seen = ' '.join([there.state, *states])
    if seen != told:
      print(f'{settings["NAME"]}: {seen}', file=sys.stderr)
      told = seen
    gcloud.sleep(poll)
