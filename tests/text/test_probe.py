"""Regular expressions of tokenizers made elsewhere that backtrack."""

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from lm.errors import UserError
from lm.text import probe, tokenizers

GPT_4 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
  r'|\s*[\r\n]+|\s+(?!\S)|\s+'
)


def split_by(pattern, tmp_path):
  tokenizer = Tokenizer(models.WordLevel({'<unk>': 0}, unk_token='<unk>'))
  tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), 'isolated')
  tokenizer.save(str(tmp_path / 't.json'))
  return tmp_path / 't.json'


def test_expression_beyond_the_engine_limit_is_refused(tmp_path, capfd):
  file = split_by('(a|aa)+$', tmp_path)
  with pytest.raises(UserError, match=r"data\.tokenizer\.file=.*'aaa.*retry-limit") as error:
    tokenizers.existing([], str(file))
  assert '\n' not in str(error.value)
  assert capfd.readouterr() == ('', '')  # no trace of the library


def test_backtracking_expression_is_refused(tmp_path):
  file = split_by('(q|qq)+$', tmp_path)
  tokenizers.existing(['plain text'], str(file))
  with pytest.raises(UserError, match=r"on a text such as 'qqq.*retry-limit"):
    tokenizers.existing(['plain text', 'q' * 90 + '!'], str(file))


def test_slow_tokenizer_is_killed(tmp_path, monkeypatch):
  file = split_by(r'a+a+a+(?:b|\d)', tmp_path)  # the cube of a run
  monkeypatch.setattr(probe, 'RUNS', ('a' * 200,) * 100)
  with pytest.raises(UserError, match=r'f: .* takes more than 1\.5 s'):
    probe.check(str(file), [], 'f', seconds=1.5)


def test_common_expressions_pass(tmp_path):
  tokenizers.existing(['Some text.'], str(split_by(GPT_4, tmp_path)))


@pytest.mark.parametrize('pattern', ['(a|aa)+$', '(q|qq)+$'])
def test_a_pattern_of_words_that_backtracks_is_refused(pattern, capfd):
  texts = ['plain text', 'q' * 90 + '!']  # the first pattern fails on the runs that are tried too
  with pytest.raises(
    UserError, match=r"^data\.tokenizer\.pattern='.*fails on.*retry-limit"
  ) as error:
    tokenizers.words(texts, pattern=pattern)
  assert '\n' not in str(error.value) and capfd.readouterr() == ('', '')


def test_a_pattern_of_words_that_takes_too_long_is_ended(monkeypatch):
  monkeypatch.setattr(probe, 'RUNS', ('a' * 200,) * 100)
  monkeypatch.setattr(probe.check, '__defaults__', (1.5,))
  with pytest.raises(UserError, match=r'^data\.tokenizer\.pattern=.* takes more than 1\.5 s'):
    tokenizers.words(['plain text'], pattern=r'a+a+a+(?:b|\d)')
