"""Text and names that Postgres can store."""

from typing import Annotated

from pydantic import AfterValidator, StringConstraints


def _storable(text: str) -> str:
    if "\x00" in text:
        raise ValueError("the text holds a null character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text is not valid Unicode") from None
    return text


Text = Annotated[str, AfterValidator(_storable)]
"""Text without null characters and lone surrogates, which Postgres cannot store."""
Name = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_storable)]
"""A name or reference of 1 to 200 characters."""
