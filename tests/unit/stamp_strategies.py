"""Strategies of hypothesis for the contents of stamps."""

from typing import Any

from hypothesis import strategies as st

from mongoz.stamps import Claim

eight_bytes = st.binary(min_size=8, max_size=8)


def with_a_claim(most: int) -> st.SearchStrategy[dict[str, Any]]:
    """The receivers and the claim of a stamp. The claim covers some of the receivers.

    Args:
        most: maximum number of receivers of each kind.
    """
    return st.builds(
        lambda claimed, others, incarnation, number: {
            "receivers": claimed | others,
            "claim": Claim(incarnation, number, claimed),
        },
        st.frozensets(eight_bytes, max_size=most),
        st.frozensets(eight_bytes, max_size=most),
        eight_bytes,
        st.integers(0, 2**64 - 1),
    )
