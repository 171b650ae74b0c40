import functools
import re
import subprocess
import sys
from collections.abc import Callable

import jax
import pytest

from lm.config import resolve
from lm.errors import UserError


def scale(x, factor=2):
  return x * factor


def chain(x, first: Callable = scale, rest: tuple[Callable, ...] = (), label: str = ''):
  for f in (first, *rest):
    x = f(x)
  return x, label


def either(x, f: Callable | tuple[Callable, ...] | None = None, table: dict | None = None):
  return f, table


def anything(**kwargs):
  return kwargs


class Layer:
  def __init__(self, width, act: Callable | None = None):
    self.width, self.act = width, act

  def scaled(self, factor=2):
    return self.width * factor


half = functools.partial(scale, factor=0.5)
finds = re.compile('a').findall

HERE = __name__


def _error(call) -> str:
  with pytest.raises(UserError) as caught:
    call()
  text = str(caught.value)
  assert '\n' not in text
  return text


def test_a_path_names_a_function():
  assert resolve.resolve(f'{HERE}:scale', 'k') is scale
  assert resolve.resolve('numpy:add', 'k')(2, 3) == 5


def test_a_name_may_be_in_a_namespace():
  remat = 'jax:checkpoint_policies.nothing_saveable'
  assert resolve.resolve(remat, 'model.remat_policy') is jax.checkpoint_policies.nothing_saveable
  assert resolve.resolve(f'{HERE}:Layer.scaled', 'k') is Layer.scaled


def test_literal_arguments_are_bound():
  assert resolve.resolve(f'{HERE}:scale(factor=-3)', 'k')(5) == -15
  layer = resolve.resolve(f'{HERE}:Layer(width=(1, [2, None], {{"a": 0.5}}))', 'k')()
  assert layer.width == (1, [2, None], {'a': 0.5})


def test_arguments_declared_callable_are_paths_themselves():
  nested = f'{HERE}:chain(first="{HERE}:scale(factor=3)", label="{HERE}:scale")'
  # `label` is annotated as a string, and thus no import path.
  assert resolve.resolve(nested, 'k')(2) == (6, f'{HERE}:scale')


def test_tuples_of_functions_and_optional_functions():
  paths = [f'{HERE}:scale', f'{HERE}:scale(factor=5)']
  assert resolve.partial_with(chain, {'rest': paths}, 'k')(1) == (20, '')
  f, table = resolve.partial_with(either, {'f': tuple(paths), 'table': {'fn': 'x'}}, 'k')(0)
  assert [g(1) for g in f] == [2, 5] and table == {'fn': 'x'}
  assert resolve.partial_with(either, {'f': None}, 'k')(0) == (None, None)
  assert resolve.partial_with(either, {'f': paths[0]}, 'k')(0)[0] is scale


def test_a_section_names_its_function_in_fn():
  section = {'fn': f'{HERE}:chain', 'first': {'fn': f'{HERE}:scale', 'factor': 7}, 'label': 'l'}
  assert resolve.build_section(section, 'objective')(1) == (7, 'l')
  assert resolve.build_section({'fn': f'{HERE}:scale(factor=3)', 'factor': 4}, 'k')(1) == 4
  assert "objective: the section needs 'fn'" in _error(
    lambda: resolve.build_section({}, 'objective')
  )


def test_annotations_of_partials_are_those_of_the_function():
  half = functools.partial(chain, label='x')
  assert resolve.partial_with(half, {'first': f'{HERE}:scale(factor=9)'}, 'k')(1) == (9, 'x')


def test_functions_that_take_any_keyword_take_any_keyword():
  assert resolve.resolve(f'{HERE}:anything(a=1)', 'k')() == {'a': 1}


@pytest.mark.parametrize(
  ('path', 'parts'),
  [
    ('scale', ["model.fn='scale' must be an import path", 'package.module:name']),
    (':scale', ["model.fn=':scale' must be an import path"]),
    ('.nn.norm:rms_norm', ["model.fn='.nn.norm:rms_norm' must be an import path"]),
    (3, ['model.fn=3 must be an import path']),
    ('no_such_package.x:f', ["no module 'no_such_package'"]),
    ('lm.nn.atention:blocked', ["no module 'lm.nn.atention'"]),
    (
      'lm.errors:did_you_men',
      ["lm.errors has no function 'did_you_men'", "did you mean 'did_you_mean'"],
    ),
    ('lm.errors:__doc__', ["lm.errors has no function '__doc__'"]),
    (f'{HERE}:scale(fctor=1)', ["takes no argument 'fctor'", "'factor'", 'it takes x, factor']),
    (f'{HERE}:scale(3)', ['must be an import path', 'arguments need names']),
    (f'{HERE}:scale(**{{}})', ['must be an import path', 'no **']),
    (f'{HERE}:scale(factor=', ['must be an import path']),
    (f'{HERE}:scale.__globals__', ["has no function 'scale.__globals__'"]),
    (f'{HERE}:nowhere.scale', ["has no function 'nowhere.scale'"]),
    (f'{HERE}:"scale".upper', ['must be an import path', 'a name, or a call of one']),
    ('jax:checkpoint_policies.nothing', ["did you mean 'nothing_saveable'"]),
    (f'{HERE}:scale(factor=1)(x=2)', ['must be an import path']),
  ],
)
def test_a_wrong_path_raises_one_line(path, parts):
  text = _error(lambda: resolve.resolve(path, 'model.fn'))
  assert text.startswith('model.fn')
  for part in parts:
    assert part in text


def test_the_key_of_a_nested_path_is_named():
  text = _error(
    lambda: resolve.build_section({'fn': f'{HERE}:chain', 'rest': ('a:b', 'oops')}, 'data')
  )
  assert text.startswith("data.rest[0]='a:b': no module 'a'")


@pytest.mark.parametrize(
  'path',
  [
    'os:system',
    'subprocess:run(args=["true"])',
    'builtins:exec',
    'antigravity:fly',  # its import alone opens a browser
    f'{HERE}:subprocess.run',
    f'{HERE}:sys.modules.clear',
    f'{HERE}:finds',
    f'{HERE}:functools.partial',
    f'{HERE}:scale.__class__',
    f'{HERE}:scale.__class__.mro',
    'lm.workdir.experiment:shutil.rmtree(path="/nowhere")',
    'lm.workdir.experiment:pathlib.Path.unlink',
  ],
)
def test_the_standard_library_is_refused(path):
  text = _error(lambda: resolve.resolve(path, 'model.position'))
  assert text.startswith(f'model.position={path!r}: ') and 'standard library' in text
  assert 'antigravity' not in sys.modules


def test_partials_count_as_what_they_wrap():
  assert resolve.resolve(f'{HERE}:half', 'k')(3) == 1.5
  assert resolve.resolve('jax.nn:relu', 'k') is jax.nn.relu  # a callable object
  wrapped = functools.partial(functools.partial(subprocess.run, shell=True), timeout=1)
  assert resolve.defining_module(wrapped) == 'subprocess'


@pytest.mark.parametrize('inside', ['-' * 9000 + '1', '[' * 4000 + ']' * 4000, '1+' * 4000 + '1'])
def test_long_expressions_are_one_line(inside):
  text = _error(lambda: resolve.resolve(f'{HERE}:scale(factor={inside})', 'k'))
  assert text.startswith("k='") and len(text) < 1000
  assert len(_error(lambda: resolve.resolve('m:' + 'a' * 10**6, 'k'))) < 1000


def test_arguments_are_parsed_and_never_evaluated(tmp_path):
  marker = tmp_path / 'made'
  text = _error(lambda: resolve.resolve(f'{HERE}:scale(factor=open({str(marker)!r}, "w"))', 'k'))
  assert 'must be an import path' in text and not marker.exists()
  _error(lambda: resolve.resolve(f'{HERE}:scale(factor=__import__("os").getpid())', 'k'))


def test_a_failing_import_differs_from_a_missing_module(tmp_path, monkeypatch):
  (tmp_path / 'broken_inside.py').write_text('import a_dependency_that_is_absent\n')
  monkeypatch.syspath_prepend(tmp_path)
  text = _error(lambda: resolve.resolve('broken_inside:f', 'k'))
  assert 'importing broken_inside failed' in text and 'a_dependency_that_is_absent' in text
  sys.modules.pop('broken_inside', None)


def test_a_missing_argument_is_found_before_the_call():
  build = resolve.build_section({'fn': f'{HERE}:Layer'}, 'model')
  text = _error(lambda: resolve.call(build, 'model'))
  assert text.startswith('model: ') and 'Layer' in text and "'width'" in text
  assert resolve.call(build, 'model', width=3).width == 3


def test_an_error_of_the_function_itself_passes():
  def fails():
    raise TypeError('from within')

  with pytest.raises(TypeError, match='from within'):
    resolve.call(fails, 'k')


def test_ref_returns_the_path_that_resolves_to_the_function():
  assert resolve.ref(scale) == f'{HERE}:scale'
  assert resolve.ref(Layer) == f'{HERE}:Layer'
  path = resolve.ref(chain, first=resolve.ref(scale, factor=-3.5), label="it's")
  assert resolve.resolve(path, 'k')(2) == (-7.0, "it's")
  assert resolve.resolve(resolve.ref(Layer, width=(1, None, {'a': True})), 'k')().width == (
    1, None, {'a': True},
  )  # fmt: skip


@pytest.mark.parametrize(
  ('call', 'parts'),
  [
    (lambda: resolve.ref(lambda x: x), ['<lambda>', 'top level']),
    (lambda: resolve.ref(functools.partial(scale, factor=2)), ['partial', 'top level']),
    (lambda: resolve.ref(scale, fctor=1), ['ref(scale)', "no argument 'fctor'", "'factor'"]),
    (lambda: resolve.ref(scale, factor=jax.numpy.ones(2)), ['factor=Array', 'no Python literal']),
    (lambda: resolve.ref(scale, factor=float('inf')), ['factor=inf', 'no Python literal']),
    (lambda: resolve.ref(chain, first=scale), ['first=<function scale', 'give ref(...) of it']),
    (lambda: resolve.ref(jax.nn.silu), ['ref(silu)', 'private', 'as a string']),
    (lambda: resolve.ref(_renamed), [f'{HERE}:scale is another function']),
    (lambda: resolve.ref('lm.nn.position:rope'), ['ref(', 'top level']),
  ],
)
def test_ref_refuses_what_no_path_can_name(call, parts):
  text = _error(call)
  for part in parts:
    assert part in text


@functools.wraps(scale)
def _renamed(x):
  return x
