"""Tags of words, such as parts of speech, by any function from words to tags."""

from collections.abc import Callable, Sequence

from lm.text.segment import jieba
from lm.text.tokens import Text

Tagger = Callable[[Sequence[str]], Sequence[str]]


def tag(text: Text, tagger: Tagger) -> Text:
  """Returns the text with each token tagged.

  Args:
    text: its tokens are words.
    tagger: from words in order to a tag for each: `parts_of_speech`, or what a trained model
      says. One that looks at neighbours sees all words of the text, so give it a sentence.

  Raises:
    ValueError: the tagger gives more or fewer tags than there are words.
  """
  tags = tagger([token.text for token in text.tokens])
  if len(tags) != len(text.tokens):
    raise ValueError(f'tagger: {len(tags)} tags for {len(text.tokens)} words')
  pairs = zip(text.tokens, tags, strict=True)
  return Text(text.raw, tuple(token._replace(tag=one) for token, one in pairs))


def parts_of_speech(words: Sequence[str]) -> list[str]:
  """Returns the tag of each Chinese word in jieba's dictionary: 'n', 'v', 'ns' and so on.

  They are looked up word by word. Numbers in digits are 'm', ASCII words 'eng', and words that are
  not in the dictionary 'x', punctuation marks among them.

  Raises:
    UserError: rjieba is not installed.
  """
  find = jieba().tag

  def look_up(word: str) -> str:
    found = find(word.encode(errors='replace').decode())  # it takes no lone surrogates
    return found[0][1] if len(found) == 1 else 'x'

  return [look_up(word) for word in words]
