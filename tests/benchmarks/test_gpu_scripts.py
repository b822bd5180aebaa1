from __future__ import annotations

from types import ModuleType

import pytest

from benchmarks.gpu import bench, check, learn


@pytest.mark.parametrize("script", [check, bench, learn])
def test_gpu_script_has_help(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        script.main(["--help"])
    assert ended.value.code == 0
    assert f"python -m {script.__name__}" in capsys.readouterr().out
