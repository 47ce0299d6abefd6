"""How far negation and uncertainty reach in a sentence.

The idea is NegEx's (Chapman et al., 2001): a cue governs what stands after it, or before it, up to
a word that ends its scope. The cues and ends here are written for ultrasound reports in English.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from fastht.taxonomy.lexicon import Lexicon, Word, words


def _listed(text: str) -> tuple[str, ...]:
    return tuple(" ".join(cue.split()) for cue in text.split("|"))


# Cues that govern what follows. A longer cue wins over a shorter one in it, at the same place.
_NEGATED_AFTER = _listed(
    """
    no | not | without | absence of | absent | negative for | free of | rather than | instead of
    | neither | nor | lack of | lacks | lacking | devoid of | never | excluding | excludes |
    rules out | ruling out | fails to show | no evidence of | no sign of | no signs of |
    without evidence of | without any evidence of | no evidence for | no longer | failed to show
    | not associated with | no indication of | denies | no suggestion of | not suggestive of |
    not show | not demonstrate | not reveal | not have | not contain | not exhibit |
    no demonstrable evidence of | no sonographic evidence of | no ultrasound evidence of |
    no definite evidence of | no obvious evidence of | not showing | not demonstrating |
    no demonstration of
    """
)
# And what precedes. Of these one after a singular verb governs the last of several alone.
_NEGATED_BEFORE = (
    *(
        f"{verb} {rest}"
        for verb in ("is", "are", "was", "were")
        for rest in (
            *("absent", "not seen", "not identified", "not present", "not visible", "not detected"),
            *("not visualised", "not visualized", "not demonstrated", "not observed", "not found"),
            *(
                "not evident",
                "not noted",
                "not apparent",
                "not appreciated",
                "ruled out",
                "excluded",
            ),
            *("not shown", "not definitely seen", "not clearly seen", "lacking", "unlikely"),
            *("not recognised", "not recognized", "not detectable", "no longer seen"),
            *("no longer visible", "no longer present"),
        )
    ),
    *("has disappeared", "have disappeared", "has resolved", "have resolved"),
)
_NEGATED_NEXT = ("non",)  # governs one word: "non-calcified nodule" has a nodule
_UNCERTAIN_AFTER = _listed(
    """
    possible | possibly | probable | probably | likely | suspected | suspicious for |
    suspicion of | suggestive of | suggesting | suggests | suggest | may | might | could |
    questionable | question of | cannot exclude | can not exclude | cannot rule out |
    can not rule out | not excluding | concerning for | presumed | presumably | perhaps |
    equivocal | worrisome for | favour | favor | differential includes | most likely | versus |
    vs | is likely a | is likely an | is likely to | are likely | unclear if | unclear whether |
    uncertain whether | uncertain if
    """
)
_UNCERTAIN_BEFORE = _listed(
    """
    cannot be excluded | can not be excluded | cannot be ruled out | can not be ruled out |
    is suspected | are suspected | is possible | are possible | is likely | is probable |
    not excluded | is not excluded | are not excluded | is questionable | are questionable |
    not ruled out | is not ruled out | is equivocal | are equivocal | is unlikely | are unlikely
    | could not be excluded | could not be ruled out
    """
)
# They look like cues and are none.
_NO_CUES = _listed(
    """
    no change | no significant change | no interval change | without change | not only |
    no increase | no significant interval change | not necessarily | no significant increase |
    not certain | no doubt | without doubt | not limited to | may be seen | no interval increase
    | without delay
    """
)
_ENDS = _listed(
    """
    but | however | although | though | yet | whereas | while | except | except for | apart from
    | aside from | other than | besides | which | that | because | due to | secondary to |
    consistent with | compatible with | representing | shows | show | showing | demonstrates |
    demonstrate | demonstrating | reveals | reveal | revealing | is | are | was | were | has |
    have | contains | containing | exhibits | appears | appear | measures | with preserved |
    and the | and a | and an | and there | and its | and it | and with | and shows | and has |
    in the | in this | within the | within this | inside the | of the | of this | around the |
    from the | to the | at the | near the | adjacent to | in its | within its | within |
    surrounding the | in an | in a | within a | inside a | next to | beside | on | with normal |
    and normal | and with a | along with | , the | , a | , an | , this | , its | , it | , there
    | , with
    """
)
_SENTENCE_ENDS = {".", ";", ":", "!", "?"}


@dataclass(frozen=True)
class Scope:
    """Words that a cue governs, from ``start`` to before ``end``, and the cue's own place."""

    start: int
    end: int
    cue: tuple[int, int]
    negates: bool

    def governs(self, start: int, end: int) -> bool:
        """Whether a phrase stands in the scope and takes no word of the cue."""
        apart = end <= self.cue[0] or start >= self.cue[1]
        return self.start <= start and end <= self.end and apart


def _lexicon() -> Lexicon:
    lexicon = Lexicon()
    for cues, meaning in (
        (_NO_CUES, ("none", False)),
        (_UNCERTAIN_BEFORE, ("before", False)),
        (_NEGATED_BEFORE, ("before", True)),
        (_UNCERTAIN_AFTER, ("after", False)),
        (_NEGATED_AFTER, ("after", True)),
        (_NEGATED_NEXT, ("next", True)),
        (_ENDS, ("end", False)),
    ):
        for cue in cues:
            lexicon.add([word.text for word in words(cue)], meaning)
    return lexicon


_CUES = _lexicon()


def sentences(text: Sequence[Word]) -> list[tuple[int, int]]:
    """Return first word and end of each sentence; a colon and a semicolon end one too."""
    bounds = [-1, *(i for i, word in enumerate(text) if word.text in _SENTENCE_ENDS), len(text)]
    return [(a + 1, b) for a, b in pairwise(bounds) if b > a + 1]


def scopes(text: Sequence[Word]) -> list[Scope]:
    """Return the scopes of negation and uncertainty of a text, within its sentences."""
    return [scope for first, end in sentences(text) for scope in _of_sentence(text, first, end)]


def _of_sentence(text: Sequence[Word], first: int, end: int) -> list[Scope]:
    found = [
        (first + start, first + stop, *meaning)
        for start, stop, meaning in _CUES.find(text[first:end])
    ]
    result = []
    for index, (start, stop, kind, negates) in enumerate(found):
        if kind == "after":
            ends = [s for s, _, other, _ in found[index + 1 :] if other in ("end", "before")]
            reach = min([end, *ends])
            if negates and stop == start + 1 and text[start].text == "not":
                reach = _first(text, {","}, stop, reach)  # "not parallel, posterior shadowing"
            if not negates:
                reach = _first(text, {",", "with", "and"}, stop + 1, reach)
            result.append(Scope(stop, reach, (start, stop), negates))
        elif kind == "next":
            result.append(Scope(stop, min(stop + 1, end), (start, stop), negates))
        elif kind == "before":
            stops = [e for _, e, other, _ in found[:index] if other != "none"]
            since = max([first, *stops])
            predicate = since > first
            if predicate or text[start].text in ("is", "was"):
                # Before the last "and" stands another's predicate, or what the verb does not mean.
                since = _last(text, {"and", "or", ","}, since, start)
            result.append(Scope(since, start, (start, stop), negates))
    return result


def _first(text: Sequence[Word], marks: set[str], start: int, end: int) -> int:
    return next((i for i in range(start, end) if text[i].text in marks), end)


def _last(text: Sequence[Word], marks: set[str], start: int, end: int) -> int:
    return next((i + 1 for i in range(end - 1, start - 1, -1) if text[i].text in marks), start)
