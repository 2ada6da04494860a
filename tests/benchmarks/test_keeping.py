"""Results as files: kept at once, carried in one file, taken up again."""

from __future__ import annotations

from benchmarks.gpu.keeping import TAIL, found, gather, keep, keep_log, usable


def result(**more: object) -> dict:
    return {"figures": {"total": {"values": [1.0]}}, "device": "cuda", "quick": False, **more}


def test_a_result_is_there_at_once_and_whole(tmp_path):
    """A file a row, and no half-written one beside it."""
    keep(tmp_path, "gpu_x", result())
    assert found(tmp_path) == {"gpu_x": result()}
    assert [path.name for path in tmp_path.iterdir()] == ["gpu_x.json"]


def test_a_result_replaces_the_log_of_a_crash(tmp_path):
    """What crashed once and was measured then has crashed no more."""
    keep_log(tmp_path, "gpu_x", "Traceback")
    keep(tmp_path, "gpu_x", result())
    assert not (tmp_path / "gpu_x.log").exists()


def test_of_a_log_the_end_is_kept(tmp_path):
    """That is where the reason is."""
    keep_log(tmp_path, "gpu_x", "\n".join(str(n) for n in range(1000)))
    lines = (tmp_path / "gpu_x.log").read_text().splitlines()
    assert len(lines) == TAIL
    assert lines[-1] == "999"


def test_what_is_no_result_is_passed_over(tmp_path):
    """A broken file, another JSON."""
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "other.json").write_text('{"rows": 3}')
    (tmp_path / "list.json").write_text("[]")
    assert found(tmp_path) == {}
    assert found(tmp_path / "missing") == {}


def test_all_results_travel_in_one_file(tmp_path):
    """A machine that gives back few files gives back this one; it serves for --resume as the folder does."""
    out, one = tmp_path / "out", tmp_path / "all.json"
    out.mkdir()
    keep(out, "gpu_x", result())
    keep_log(out, "gpu_y", "it broke")
    gather(out, one)
    assert found(one) == {"gpu_x": result()}
    assert "it broke" in one.read_text()


def test_a_former_result_stands_where_it_answers_the_same_question():
    """A short run is no answer where a full one is asked for, the CPU is no GPU, and what could not be measured may be now."""
    assert usable(result(), quick=False, device="cuda")
    assert usable(result(), quick=True, device="cuda")
    assert usable(result(quick=True), quick=True, device="cuda")
    assert not usable(result(quick=True), quick=False, device="cuda")
    assert not usable(result(device="host"), quick=False, device="cuda")
    assert not usable(result(not_measured="needs root"), quick=False, device="cuda")
