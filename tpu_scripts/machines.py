"""The machines: their states, creation and deletion."""

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
  """Returns the queued resource.

  Raises:
    GcloudError: for any reason except NOT_FOUND.
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
  """Returns all nodes.

  Raises:
    GcloudError: for any reason except NOT_FOUND.
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
    # Only if the message has this exact name, since deletion and creation may follow.
    if e.kind == 'not found' and argv[5] in e.stderr:
      return None
    raise
  except ValueError as e:
    raise GcloudError(f'gcloud describe answered no JSON: {text[:80]!r}', 'other') from e


def create(
  settings: Settings, gcloud: Gcloud, agreed: bool, again: bool, poll: float | None
) -> None:
  """Creates the machines unless they exist, and waits for them.

  Args:
    agreed: The costs were agreed to on the command line; otherwise there is a prompt.
    again: First delete machines that have ended.
    poll: Seconds between two status checks; None does not wait.

  Raises:
    Stop: the name is taken, the costs were not agreed to, or no machines became ready.
  """
  resource = queued(settings, gcloud)
  if resource.state in ENDED and not again:
    raise Stop(
      f'{settings["NAME"]} is {resource.state} {resource.why}: it never recovers; give '
      '--recreate to delete it and create it again',
      LOST,
    )
  refuse_others(settings, resource)
  if gcloud.dry or resource.state == NOT_FOUND or resource.state in ENDED:
    agree(settings, agreed or gcloud.dry)
    if resource.state in ENDED:
      delete(settings, gcloud)
    request(settings, gcloud)
  if poll is not None:
    wait(settings, gcloud, poll)


def request(settings: Settings, gcloud: Gcloud) -> None:
  """Requests the machines without waiting for them."""
  gcloud.call(commands.create(settings), timeout=300)


def delete(settings: Settings, gcloud: Gcloud) -> None:
  """Deletes the machines and waits for the deletion."""
  gcloud.call(commands.delete(settings), timeout=1200)


def refuse_others(settings: Settings, resource: Queued) -> None:
  """Raises Stop if machines of other settings have this name."""
  if resource.state != NOT_FOUND and resource.label != settings.label:
    label = f'has the label {resource.label}' if resource.label else 'has no label of ours'
    raise Stop(
      f'NAME={settings["NAME"]} is taken: the {resource.state} queued resource of that name '
      f'{label} and these settings are {settings.label}; choose another NAME, or the settings of '
      'that one'
    )


def agree(settings: Settings, agreed: bool) -> None:
  """Prints the costs and, unless `agreed`, asks the user to type the name."""
  print(settings.cost(), file=sys.stderr)
  confirm(settings, agreed, 'to pay for it')


def confirm(settings: Settings, agreed: bool, what: str) -> None:
  """Asks the user to type the name, unless `agreed`.

  Raises:
    Stop: another text was typed, or stdin is not a terminal.
  """
  name = settings['NAME']
  if agreed:
    return
  if not sys.stdin.isatty():
    raise Stop(f'no terminal to agree {what} ({name}): give --yes')
  print(f'Type {name} {what}: ', end='', file=sys.stderr, flush=True)
  if sys.stdin.readline().strip() != name:
    raise Stop('not agreed to; nothing was changed')


def wait(settings: Settings, gcloud: Gcloud, poll: float) -> None:
  """Waits until the queued resource is ACTIVE and its nodes are READY.

  A request for capacity waits until VALID_UNTIL and is FAILED afterwards. The timeout for the
  creation of machines is WAIT_MINUTES.

  Raises:
    Stop: the resource ended, does not exist, or is not ready in time.
  """
  since, printed = None, ''
  while True:
    resource = queued(settings, gcloud)
    states = [node.state for node in nodes(settings, gcloud)] if resource.state == 'ACTIVE' else []
    if gcloud.dry or (states and set(states) == {'READY'}):
      return
    if resource.state == NOT_FOUND or resource.state in ENDED or set(GONE) & set(states):
      seen = ', '.join([resource.state, *states])
      raise Stop(f'{settings["NAME"]} is {seen} {resource.why}: there are no machines', LOST)
    if resource.state not in QUEUEING:
      since = since or time.monotonic()
      if time.monotonic() - since > 60 * float(settings['WAIT_MINUTES']):
        raise Stop(f'{settings["NAME"]} is not ready after WAIT_MINUTES; it stays as it is', LOST)
    seen = ' '.join([resource.state, *states])
    if seen != printed:
      print(f'{settings["NAME"]}: {seen}', file=sys.stderr)
      printed = seen
    gcloud.sleep(poll)
