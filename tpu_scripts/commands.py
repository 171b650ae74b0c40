"""The argv of every call of gcloud: pure functions of the settings.

Flags are those of Google Cloud SDK 528; the tests compare them with its help. Machines are always
a queued resource named NAME with the nodes NAME-0, NAME-1, ... Remote commands go to all workers:
in SDK 528 `--worker=2,3` returns 0 even if every worker failed, and `--output-directory` breaks.
"""

from collections.abc import Sequence

from tpu_scripts.settings import Settings

QUEUED = ['gcloud', 'compute', 'tpus', 'queued-resources']
LABEL = 'lm-settings'


def nodes(settings: Settings) -> list[str]:
  """Returns the names of the nodes, one a slice."""
  return [f'{settings["NAME"]}-{i}' for i in range(settings.slices)]


def create(settings: Settings) -> list[str]:
  several = [f'--node-count={settings.slices}', f'--node-prefix={settings["NAME"]}']
  argv = [
    *(QUEUED + ['create', settings['NAME']]),
    *_where(settings),
    f'--accelerator-type={settings["ACCELERATOR_TYPE"]}',
    f'--runtime-version={settings.runtime}',
    *(several if settings.slices > 1 else [f'--node-id={nodes(settings)[0]}']),
    f'--valid-until-duration={settings["VALID_UNTIL"]}',
    f'--labels={LABEL}={settings.label}',
  ]
  if settings['TOPOLOGY']:
    # gcloud accepts a topology only together with a generation, and only for v4.
    argv.remove(f'--accelerator-type={settings["ACCELERATOR_TYPE"]}')
    argv += [f'--type={settings.slice.generation}', f'--topology={settings["TOPOLOGY"]}']
  argv += {'on-demand': [], 'spot': ['--spot'], 'reserved': ['--reserved']}[settings['CAPACITY']]
  argv += ['--internal-ips'] if settings['INTERNAL_IP'] == 'yes' else []
  for key in ('NETWORK', 'SUBNETWORK', 'SERVICE_ACCOUNT'):
    if settings[key]:
      argv.append(f'--{key.lower().replace("_", "-")}={settings[key]}')
  return argv + ['--async', '--quiet']


def describe(settings: Settings) -> list[str]:
  return [*(QUEUED + ['describe', settings['NAME']]), *_where(settings), '--format=json']


def describe_node(settings: Settings, node: str) -> list[str]:
  return ['gcloud', 'compute', 'tpus', 'tpu-vm', 'describe', node, *_where(settings)] + [
    '--format=json'
  ]


def delete(settings: Settings) -> list[str]:
  """Deletes the queued resource and, by --force, its nodes."""
  return [*(QUEUED + ['delete', settings['NAME']]), *_where(settings), '--force', '--quiet']


def list_all(settings: Settings) -> list[str]:
  columns = 'name.basename(),state.state,tpu.nodeSpec[0].node.acceleratorType,createTime'
  return [*(QUEUED + ['list']), *_where(settings), f'--format=table({columns})']


def ssh(settings: Settings, command: str) -> list[str]:
  """Runs a command on every worker of every slice."""
  return [*(QUEUED + ['ssh', settings['NAME']]), *_everywhere(settings), f'--command={command}']


def scp(settings: Settings, files: Sequence[str]) -> list[str]:
  """Copies files into the home directory of every worker."""
  return [*(QUEUED + ['scp']), *files, f'{settings["NAME"]}:', *_everywhere(settings)]


def checkpoints(settings: Settings, run: str) -> list[str]:
  """Lists the checkpoints of a run, one directory for each step."""
  return ['gcloud', 'storage', 'ls', f'{settings["GCS_ROOT"]}/{run}/checkpoints/'] + [
    f'--project={settings["PROJECT"]}'
  ]


def _where(settings: Settings) -> list[str]:
  return [f'--project={settings["PROJECT"]}', f'--zone={settings["ZONE"]}']


def _everywhere(settings: Settings) -> list[str]:
  argv = [*_where(settings), '--node=all', '--worker=all', '--strict-host-key-checking=no']
  argv += ['--internal-ip'] if settings['INTERNAL_IP'] == 'yes' else []
  argv += ['--tunnel-through-iap'] if settings['TUNNEL'] == 'yes' else []
  return [*argv, '--quiet']
