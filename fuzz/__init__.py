"""Coverage-guided fuzzing of what reads other people's bytes: `python -m fuzz TARGET --minutes 10`.

A target is a module in `fuzz/targets`:

    try_one(data: bytes) -> None   hands the bytes to the code; a UserError is an answer and is caught there, anything
                                   else that escapes is a finding
    seeds() -> Iterable[bytes]     small valid inputs to begin from
    INSTRUMENT: tuple[str, ...]    packages whose branches guide the fuzzer (default: mtlcar)

What a target was once broken by lies in `tests/corpus/TARGET/`, and tests/test_fuzz.py tries it again.
"""
