"""Is raybert still as many times as fast as sentence-transformers as it was?

    python tests/benchmarks/check.py                # exit 1 and a line for every ratio beyond the noise
    python tests/benchmarks/check.py update=true    # measure and keep

Runs a short encode.py and compares with ratios.json, which says on what CPU its ratios were taken and how far they
spread over the rounds. On another CPU it says so and exits 0: ratios of two machines say nothing about the code.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
KEPT = HERE / "ratios.json"
WORDS = (
    "models=minilm",
    "texts=short,mixed",
    "sides=raybert,sentence-transformers,sentence-transformers-bf16",
    "rounds=5",
)
# Of a ratio: rounds of one run agree better than runs of two days on a shared machine do (they differed by 6 to 12 %).
LEAST_NOISE = 0.12


def main(argv: Sequence[str]) -> int:
    """Returns 0 if all ratios are as kept, or another CPU's; 1 if one has fallen; 2 for a word not understood."""
    from roof import machine  # here, because the tests import this file as a part of a package

    if list(argv) not in ([], ["update=true"]):
        print("check: the only setting is update=true", file=sys.stderr)
        return 2
    if argv:
        measured = ratios(measure())
        KEPT.write_text(json.dumps(measured, indent=2) + "\n")
        print(f"kept {len(measured['ratios'])} ratios in {KEPT}")
        return 0
    if not KEPT.exists():
        print(f"check: there is no {KEPT}; make it with update=true", file=sys.stderr)
        return 2
    code, lines = judge(json.loads(KEPT.read_text()), machine(), measure)
    print("\n".join(lines))
    return code


def judge(
    kept: dict[str, Any], here: dict[str, Any], measure: Callable[[], dict[str, Any]]
) -> tuple[int, list[str]]:
    """(exit status, what to say). Measures only on the kind of machine that the kept ratios come from."""
    if here != kept["machine"]:
        return 0, [f"skipped: the ratios were taken on {_words(kept['machine'])}; this is {_words(here)}"]
    fallen = compare(kept["ratios"], ratios(measure())["ratios"])
    return (1, fallen) if fallen else (0, ["raybert is as many times as fast as it was, or more"])


def compare(kept: dict[str, Any], measured: dict[str, Any]) -> list[str]:
    """One line for every kept ratio that has fallen by more than its noise, or that was not measured."""
    lines = []
    for name, was in kept.items():
        now = measured.get(name)
        if now is None:
            lines.append(f"{name}: raybert was {was['ratio']:.2f} x as fast; not measured now")
        elif now["ratio"] < was["ratio"] - was["noise"]:
            before = f"was {was['ratio']:.2f} x, noise {was['noise']:.2f}"
            lines.append(f"{name}: raybert is {now['ratio']:.2f} x as fast, {before}")
    return lines


def ratios(report: dict[str, Any]) -> dict[str, Any]:
    """What ratios.json holds, out of encode.py's JSON: the machine, and of every ratio its median and spread."""
    found = {}
    for cell in report["cells"]:
        for side, about in cell["sides"].items():
            if side == "raybert":
                continue
            median, spread = about["raybert_is_times"], max(about["ratios"]) - min(about["ratios"])
            noise = max(spread, LEAST_NOISE * median)
            name = f"{cell['model']}, {cell['texts']}, {side}"
            found[name] = {"ratio": round(median, 3), "noise": round(noise, 3)}
    return {"machine": report["machine"], "ratios": found}


def measure() -> dict[str, Any]:
    """A short encode.py's JSON; its tables go to stdout."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "report.json")
        subprocess.run([sys.executable, HERE / "encode.py", *WORDS, f"output={file}"], check=True)
        return json.loads(file.read_text())


def _words(machine: dict[str, Any]) -> str:
    return f"{machine['cpu']} ({', '.join(machine['flags']) or 'no bfloat16'}, {machine['cores']} cores)"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
