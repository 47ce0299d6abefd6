"""Two gloo processes agree with one process that has the whole batch; cases in losses_worker.py."""

import forked
import pytest

CASES = "open_clip,one_process,small_divergences,local_scope,ddp,upstream,errors,graph"


@pytest.mark.slow
@forked.needed
def test_two_processes_agree_with_one(tmp_path):
    """All cases by the same two, since starting them takes longer than what they do."""
    workers = [
        forked.Forked(
            "losses_worker:main", CASES, str(tmp_path), str(rank), GLOO_SOCKET_IFNAME="lo"
        )
        for rank in range(2)
    ]
    for text in forked.run(workers):
        assert [line for line in text.splitlines() if line.endswith(" agrees")] == [
            f"{case} agrees" for case in CASES.split(",")
        ]
