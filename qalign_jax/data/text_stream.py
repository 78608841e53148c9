"""Text that appears token by token, and together is the text of all tokens."""

from qalign_jax.data.tokenizer import Tokenizer

# Ids that are decoded together with a new one; where there are more, the last half is kept.
_WINDOW = 32
_BEGIN = "<0xF4>"  # the piece of a byte that begins a character of four
_CHARACTER = "\U0010ffff"  # which no vocabulary has


class TextStream:
    """Decodes one text as its ids come.

    A token whose character is not complete is held back until it is. So are all bytes in a row
    of a tokenizer that decodes them together, as LLaMA2's tokenizer.json does: there one byte
    that is no character's makes all of them unreadable.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        ids = tokenizer.encode(_CHARACTER)
        # behind bytes that are decoded together it changes their text
        self._begin = [number for number in ids if tokenizer.piece(number) == _BEGIN][:1]
        self._ids: list[int] = []  # all
        self._held: list[int] = []
        self._told = 0  # characters that were given back
        self._start = 0  # of the window in the ids
        self._known = 0  # characters of the window's own text that were given back

    def add(self, number: int) -> list[tuple[int, str]]:
        """Takes the next id; returns the (id, text) that are complete now, if any.

        A character stands at the last of its tokens, and "" at the others.
        """
        self._ids.append(number)
        self._held.append(number)
        window = self._ids[self._start :]
        text = self._tokenizer.decode(window)
        longer = self._tokenizer.decode(window + self._begin)
        if text.endswith("\ufffd") or not longer.startswith(text):
            return []
        new = text[self._known :]
        self._told += len(new)
        self._known = len(text)
        if len(window) > _WINDOW:
            self._shorten()
        return self._release(new)

    def end(self) -> list[tuple[int, str]]:
        """What is left when no id follows, if any."""
        whole = self._tokenizer.decode(self._ids)
        return self._release(whole[self._told :])

    def _shorten(self) -> None:
        start = len(self._ids) - _WINDOW // 2
        text = self._tokenizer.decode(self._ids[start:])
        if text:  # else it would take the space in front of the next id
            self._start, self._known = start, len(text)

    def _release(self, text: str) -> list[tuple[int, str]]:
        held, self._held = self._held, []
        return [(number, "") for number in held[:-1]] + [(number, text) for number in held[-1:]]
