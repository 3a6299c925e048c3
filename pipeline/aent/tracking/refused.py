"""What MLflow refuses for ever is left out, so that it does not hold up what comes after it.

An answer 400, 413, 414, 415 or 422 is about what was sent: a name with a wrong character, a file
that is too large. MLflow's client retries other answers (``_TRANSIENT_FAILURE_RESPONSE_CODES`` in
mlflow/utils/request_utils.py: 408, 429, 5xx), or they are about the whole run: no permission (401,
403), no such run (404). Those are raised, and the senders try again.

An answer alone does not prove it: MLflow also answers 400 if the whole run was deleted or if its
database has failed. So something that MLflow has taken before is sent again, before and after what
was refused is sent a second time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from aent.recipe.redact import redacted
from aent.runtime.log import log

T = TypeVar("T")
REFUSES = "aent: MLflow refuses "  # such a sentence of ``tell`` begins with it
ABOUT_WHAT_WAS_SENT = (400, 413, 414, 415, 422)
WHY_LENGTH = 300  # characters of the server's answer
# MLflow's client turns an answer that is not JSON (a proxy's) into this text, and 413 into the
# code INTERNAL_ERROR (verify_rest_response in mlflow/utils/rest_utils.py)
_STATUS_IN_TEXT = re.compile(r"failed with error code (\d{3}) != ")


def refusal(error: Exception) -> str:
    """The server's answer if it is about what was sent; empty for any other error."""
    if _status(error) not in ABOUT_WHAT_WAS_SENT:
        return ""
    return redacted(" ".join(str(error).split()))[:WHY_LENGTH]


def _status(error: Exception) -> int | None:
    """The status of the server's answer; None if it did not answer, or is no server."""
    from mlflow.exceptions import MlflowException
    from requests import HTTPError

    if isinstance(error, HTTPError):  # of an upload
        return None if error.response is None else error.response.status_code
    if not isinstance(error, MlflowException):
        return None
    if found := _STATUS_IN_TEXT.search(str(error)):
        return int(found[1])
    return error.get_http_status_code()


def tell(what: str, where: Path, why: str) -> None:
    """Say on stderr what MLflow refuses, where it stays, and the server's answer."""
    log.warning(f"{REFUSES}{what}, which stays in {where}: {why}")


def deliver(
    items: Sequence[T], send: Callable[[Sequence[T]], None], probe: Callable[[], None]
) -> list[tuple[T, str]]:
    """Send all items, in one call if the server takes them so, and return those that it refuses,
    each with the server's answer.

    probe: sends something that the server has taken before. Raises what ``send`` raises if it is no
    refusal, and what ``probe`` raises.
    """
    if not items:
        return []
    try:
        send(items)
    except Exception as error:
        if not refusal(error):
            raise
        probe()
        found = _parted(items, send)
        if found:
            probe()  # the server may have failed meanwhile, and refused all the rest for that
        return found
    return []


def _parted(items: Sequence[T], send: Callable[[Sequence[T]], None]) -> list[tuple[T, str]]:
    """The refused ones of items that were refused together; of one item: sent again."""
    middle = len(items) // 2
    found = []
    for part in (items[:middle], items[middle:]) if middle else (items,):
        try:
            send(part)
        except Exception as error:
            if not (why := refusal(error)):
                raise
            found += [(part[0], why)] if len(part) == 1 else _parted(part, send)
    return found
