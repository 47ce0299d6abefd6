"""Captions that describe nothing: a language model's refusals, which some sets kept as captions.

The rules are fastht's own, written for English. Each wants words of the task that the model was
given (a caption, the input, "provided") beside words of refusal: a report may well say that
something cannot be evaluated, and that is a finding.
"""

from __future__ import annotations

import re
from typing import Literal

from fastht.data.cases import Reading
from fastht.data.notes import Note, examples

Refusals = Literal["drop", "keep"]

REASON = "caption that refuses to describe"
_SHOWN = 3

_TEXT = r"(?:captions?|descriptions?|summar(?:y|ies)|sentences?|statements?|reports?|responses?)"
_KIND = (
    r"(?:(?:specific|relevant|particular|detailed|descriptive|further|additional|clear|actual|"
    r"meaningful|concrete|ultrasound|ultrasonographic|sonographic|imaging|image|diagnostic|"
    r"medical|clinical ultrasound|any|valid|proper|coherent|complete|accurate|single) )*"
)
_MAKE = (
    r"(?:complet|generat|creat|produc|writ|compos|formulat|construct|provid|suppl|deriv|giv|offer|"
    r"mad)"
)
_MADE = rf"{_MAKE}(?:ed|en|e|ied|ten)\b"
_TO_MAKE = (
    r"(?:generat|creat|produc|writ|compos|formulat|construct|provid|suppl|deriv|giv|offer|mak)"
    r"(?:e|y|ing)?\b"
)
_GIVEN = r"(?:provided|given|supplied|available|input|source|original|submitted)"
_INPUT = r"(?:text|input|information|data|caption|description|labels?|tags?|record|prompt|content)"
# What a caption is made from, as no scan shows it: not "the passage of gas", "the source of pain".
_WORDS = (
    r"(?:text(?!-| book)|input(?! (?:artery|vessel|vein|signal))|prompt|passage|source|labels?|"
    r"tags?|keywords?|metadata|annotations?|case (?:text|history|record))(?! of)\b"
)
_NOT = r"(?:cannot|can not|can't|could not|couldn't|is not able to|not possible to|unable to)"
_LACKS = (
    r"(?:lacks?|lacking|does not|do not|doesn't|don't|did not|contains? no|provides? no|"
    r"includes? no|(?:is|are|was|were) (?:insufficient|incomplete|empty|missing|not|too|unclear))"
)

_FROM_WORDS = rf"(?:the|this) (?:\w+ )?{_WORDS}"
_TO_TELL = (
    rf"(?:to (?:describe|caption|summari[sz]e)\b|(?:to {_TO_MAKE}|for) (?:an? |the |any )?{_KIND}"
    rf"{_TEXT}\b)"
)
_KNOWLEDGE = r"(?:information|details?|context|input)"
_TOO_LITTLE = r"(?:insufficient|inadequate|not enough|too little)"

_RULES: dict[str, str] = {
    # "I cannot", but not the stage in "Grade I cannot be excluded".
    "speaks of itself": (
        r"\b(?:as an? (?:ai|language model)|ai (?:language )?model|large language model)\b|"
        r"(?:^|[.!?,;:] |\bbut |\bhowever |\bunfortunately )i(?: am|'m)? "
        r"(?:cannot|can't|can not|unable|not able|sorry|apologi[sz]e|do not have|don't have|"
        r"would need|need|require|lack|have no|see no|do not see|don't see|was not given|"
        r"missing)(?! be\b)|^(?:i'm |i am )?sorry\b(?=[,.;:!]| but)|\bmy apologies\b|"
        r"\b(?:we|i) (?:cannot|can't|could not|are unable to|am unable to) (?:describe|caption|"
        r"interpret|view|access|generate|provide|create|write) (?:this|the|an?|any) (?:\w+ )?"
        r"(?:image|picture|scan|caption|description|sentence)\b|"
        r"\bthe (?:ai )?model (?:has|is|does|cannot|can|was)\b"
    ),
    # No report speaks of its caption, nor of the text that it was made from.
    "speaks of the task": (
        r"\b(?:an?|the|this|no|any|ultrasound|image) captions?\b(?! (?:line|mark|bar))|"
        r"\b(?:from|in|by) the (?:\w+ )?text\b(?!-| book)|^the (?:\w+ )?text (?:given|is|does|only|"
        r"describes|refers|focuses|mentions)\b|"
        r"\b(?:not|none|nothing)(?: is| are| was| were)? provided\b(?! (?:by|with))|"
        r"^apologies\b|\bplaceholder\b|\bbe captioned\b"
    ),
    "asks for input": (
        r"\bplease (?:provide|supply|upload|share|give|submit|specify|include|resubmit|attach)\b|"
        r"\b(?:if|once|can|could|would|will) you (?:can |could |please )?(?:provide|share|supply|"
        r"upload|give|send|add)\b"
    ),
    "more would be needed": (
        rf"\b(?:requires?|needs?)\b[^.]{{0,30}}\b{_KNOWLEDGE} [^.]{{0,30}}?{_TO_TELL}|"
        rf"\b{_KNOWLEDGE} (?:is|are|would be) (?:needed|required|necessary) {_TO_TELL}"
    ),
    "no text can be made": (
        rf"\b{_KIND}{_TEXT} (?:\w+ ){{0,4}}?(?:{_NOT}) be {_MADE}|"
        rf"\bno {_KIND}{_TEXT} (?:can|could|may) be {_MADE}|"
        rf"\b{_NOT} (?:be used to )?{_TO_MAKE} (?:an? |the |any )?{_KIND}"
        rf"(?:{_TEXT}|ultrasound findings)\b|"
        rf"\bnot possible to {_TO_MAKE}|"
        rf"\bimpossible to (?:describe|caption|{_TO_MAKE}) (?:an? |the |any |this )?{_KIND}"
        rf"(?:{_TEXT}|findings?|image|picture)\b|"
        rf"\b{_TEXT} (?:is |are )?(?:unavailable|not available) (?:due to|because of|as) "
        r"(?:missing|insufficient|lack|lacking|no|incomplete)\b|"
        r"\b(?:descriptions?|summary|summaries) (?:is|are|was|were) "
        r"(?:missing|absent|blank|empty|unavailable)\b|"
        rf"\bno {_KIND}{_TEXT} (?:is|are|was|were) (?:possible|feasible)\b|"
        r"\bnot (?:possible|feasible) (?:given|due to|owing to|because of|with) (?:the |such )?"
        rf"(?:lack of|absence of|missing|absent|limited|insufficient) {_KIND}"
        r"(?:information|details?|data|input|context|findings)\b|"
        # "The bladder cannot be described in detail", but no report speaks so of its image.
        rf"\b(?:image|picture) {_NOT} be (?:described|interpreted|summari[sz]ed)\b"
    ),
    "nothing was given": (
        rf"\bno {_KIND}(?:findings?|details?|{_TEXT}|input|text|features|content|"
        rf"(?:image|imaging|ultrasound|sonographic) (?:data|information)) "
        rf"(?:or (?:\w+ ){{1,3}})?"
        rf"(?:(?:is|are|was|were|has been|have been) )?(?:explicitly |clearly )?"
        rf"(?:provided|given|supplied|mentioned|specified|stated|"
        rf"(?:described|included|present|available) in the {_GIVEN}? ?{_INPUT})|"
        rf"\bno {_KIND}information (?:is|was|has been) (?:provided|given|supplied) "
        rf"(?:to|for|about the image|in the)\b|"
        rf"\b(?:findings?|details?|features|characteristics|information|descriptions?|captions?|"
        rf"text|input)(?: \w+){{0,4}} (?:is|are|was|were|has been|have been) not (?:explicitly )?"
        rf"(?:provided|supplied|specified|mentioned|given|stated|included)\b|"
        rf"\bno {_KIND}(?:information|details?) (?:about|regarding|on|concerning|for) [^.]*?"
        rf"\b(?:is|are|was|were) (?:given|provided|supplied|specified|mentioned)\b|"
        rf"\bthere (?:is|are) no {_KIND}(?:information|details?) (?:about|regarding|on|concerning) "
        r"the (?:image|appearance|findings?|lesion|ultrasound|scan)\b|"
        rf"\bno {_KIND}(?:findings?|details?|features|information|abnormalities) to (?:describe|"
        rf"caption|summari[sz]e)\b|"
        rf"\bno {_KIND}(?:findings?|details?|features|information)\b[^.]*\b(?:from|in|within) "
        rf"(?:the |this )?(?:provided|given|supplied|input) {_INPUT}\b|"
        r"\bnothing (?:\w+ )?to (?:describe|caption|summari[sz]e)\b"
    ),
    "not in the words": (
        r"\b(?:not|no|nothing|none)\b[^.]*\b(?:described|stated|mentioned|reported|listed|named|"
        rf"included|contained|specified|given|present|found|part) (?:in|of|by|within) "
        rf"{_FROM_WORDS}|"
        r"\b(?:no|nothing)\b[^.]*\b(?:can|could|may) be (?:extracted|derived|inferred|identified|"
        rf"obtained|drawn|composed|gathered) from {_FROM_WORDS}"
    ),
    "tags alone": (
        r"\bonly (?:the |an? )?(?:organ|organ level|body system|anatomical \w+|anatomy|diagnosis|"
        r"labels?|tags?|keywords?|metadata)\b[^.]*?\b(?:is|are|was|were) (?:given|provided|"
        r"specified|stated|supplied|listed|named|known|mentioned)\b|"
        r"\b(?:labels|tags|keywords|metadata) (?:only (?:list|name|give|state|mention)|"
        r"(?:list|name|give|state|mention|specify|contain|provide|say)s? "
        r"(?:only|nothing|no (?:\w+ )?(?:findings?|details?|information|features)))\b"
    ),
    "a text of something else": (
        r"\b(?:the|this) (?:\w+ )?(?:passage|text|content|article|abstract|paragraph|sentence)"
        r"(?! of)\b[^.]*?\b(?:(?:does not|do not|doesn't|don't) (?:describe|relate to|refer to|"
        r"concern)|says nothing|(?:contains|gives|has) no)\b[^.]*?"
        r"\b(?:ultrasound|sonograph\w*|image|imaging|scan|picture|findings?)\b"
    ),
    "an empty record": (
        r"\b(?:record|entry|text|caption|tags|labels|annotations|(?:annotation|label|tag|data) "
        r"fields) (?:is|are|was|were|seems?|appears?) (?:to be )?(?:empty|blank)\b"
    ),
    "the input lacks something": (
        rf"\b(?:the|this|your) {_GIVEN} {_INPUT}\b[^.]*?\b{_LACKS}\b|"
        rf"\bthe {_INPUT} (?:that (?:is|was) )?(?:provided|given|supplied) (?:\w+ )?{_LACKS}\b|"
        r"\bthe user\b|"
        # Scans have no input, but a vessel or a duct has one.
        r"\b(?:the|this|your) (?:input|prompt)\b(?! (?:artery|vessel|vein|signal|of))|"
        r"\b(?:the|this) (?:record|text|entry|data|information) (?:contains?|has|have|holds?|"
        r"includes?|lists?) (?:only|no)\b|"
        r"\b(?:the|this) (?:record|text|entry) (?:gives|offers) no\b|"
        rf"\b(?:the|this) (?:{_TEXT}|text|information) {_LACKS} (?:\w+ ){{0,2}}?"
        rf"(?:specific|any|enough|sufficient|details?|findings?|information|contain|include|"
        rf"provide|specify|mention)\b"
    ),
    "too little to write from": (
        rf"\b(?:insufficient|not enough|inadequate|limited|too little|"
        rf"(?:does not|do not|did not|lacks?|without)\b[^.]{{0,20}}\b(?:enough|sufficient)) {_KIND}"
        rf"(?:information|data|details?|input|context|content)\b[^.]{{0,40}}?"
        rf"\b(?:to|for) (?:{_TO_MAKE}|(?:an? |the |any )?{_KIND}{_TEXT}\b)|"
        rf"\b{_TOO_LITTLE} {_KIND}{_KNOWLEDGE} (?:is|are|was|were) (?:provided|available|given|"
        rf"supplied|included)\b|"
        rf"\bthere (?:is|are|was|were) {_TOO_LITTLE} {_KIND}{_KNOWLEDGE}"
        rf"(?: (?:about|regarding|concerning) the\b| {_TO_TELL}|[.,;]|$)|"
        rf"\bwithout (?:additional|further|more|any|specific|sufficient) {_KIND}"
        rf"(?:information|details?|context|input)\b[^.]*\b(?:{_NOT}|not possible)"
    ),
    "not to be told from the input": (
        rf"\b{_NOT}\b[^.]*\b(?:from|based on|using|with) (?:the |this )?(?:provided|given|supplied|"
        rf"input) {_INPUT}\b|"
        rf"\b{_TEXT} (?:\w+ ){{0,3}}?(?:is|are|was) not possible (?:from|with|based on|without) "
        rf"(?:the |this )?(?:available|provided|given|supplied|input|more|further) {_INPUT}\b|"
        rf"\b{_NOT} be (?:determined|described|inferred|identified) from "
        rf"the (?:input|text|prompt|caption)\b"
    ),
    "stands for nothing": (
        r"^\W*(?:n/?a|none|null|nan|unknown|error|tbd|todo|lorem ipsum.*|"
        r"(?:ultrasound |imaging )?(?:caption|description|text|findings?)?:? ?(?:is |are )?"
        r"(?:not (?:available|applicable|provided|specified|given)|unavailable|missing)|"
        r"no (?:caption|description|text|data|input)(?: (?:is )?(?:available|provided|given))?|"
        r"\[?(?:insert|placeholder|your)\b.*)\W*$"
    ),
}
_COMPILED = {name: re.compile(rule) for name, rule in _RULES.items()}


def refusal(caption: str) -> str | None:
    """Name the rule by which a caption is a refusal; None if it is not."""
    text = " ".join(caption.lower().replace("\u2019", "'").replace("_", " ").split())
    return next((name for name, rule in _COMPILED.items() if rule.search(text)), None)


def leave_out_refusals(reading: Reading) -> None:
    """Leave out cases whose caption is a refusal; count them and list the first."""
    found = [case for case in reading.cases if case.caption and refusal(case.caption)]
    if not found:
        return
    names = {id(case) for case in found}
    reading.cases = [case for case in reading.cases if id(case) not in names]
    reading.used.update(case.image for case in found)
    reading.left_out[REASON] += len(found)
    text = f"captions that refuse to describe, by fastht's own rules: {len(found):,}"
    told = examples((f"{case.name} ({case.caption!r})" for case in found), _SHOWN)
    remedy = "`fastht taxonomy check` lists all; keep them by --refusals keep"
    reading.notes.append(Note("refusals", len(found), f"{text}, of {told}; {remedy}"))
