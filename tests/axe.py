"""axe-core, which checks a page's accessibility: fetched by npm when a test wants it, and never part of the project."""

import functools
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.browser import open_page

VERSION = "4.10.3"
# Runs when the page says that it is done, and writes what is against the rules, worst first.
PROBE = """<script>SOURCE</script><script>
const settle = async () => {
  const pause = (time) => new Promise((go) => setTimeout(go, time));
  const waits = () => document.readyState !== "complete"
    || document.querySelector(".mechmem:not([data-ready])") || document.querySelector(".plot:not(.js-plotly-plot)");
  for (let tries = 0; tries < 120 && waits(); tries += 1) await pause(250);
  await pause(500);
  const found = await axe.run(document, { resultTypes: ["violations"] });
  return found.violations.map((one) => ({ rule: one.id, impact: one.impact,
    where: one.nodes.slice(0, 4).map((node) => `${node.target.join(" ")}: ${node.failureSummary}`) }));
};
settle().catch((error) => [{ rule: String(error), impact: "critical", where: [] }]).then((found) => {
  document.documentElement.dataset.probe = JSON.stringify({ violations: found,
    dark: window.matchMedia("(prefers-color-scheme: dark)").matches });
});
</script>"""


@functools.cache
def axe_source() -> str:
    """The script; the test is skipped where npm cannot give it."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed, and axe-core comes from there")
    with tempfile.TemporaryDirectory(prefix="mechmem-axe-") as folder:
        command = [
            npm,
            "install",
            "--prefix",
            folder,
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
            f"axe-core@{VERSION}",
        ]
        try:
            subprocess.run(command, capture_output=True, timeout=90, check=True)
        except (subprocess.SubprocessError, OSError) as error:
            pytest.skip(f"npm could not fetch axe-core ({type(error).__name__})")
        source = (Path(folder) / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")
    return source.replace("</script", "<\\/script")


def serious_violations(page: str, folder: Path, *, dark: bool) -> list[str]:
    """What axe-core calls serious or critical in a page, one line each with the first places."""
    probe = PROBE.replace("SOURCE", axe_source())
    flags = ["--blink-settings=preferredColorScheme=0"] if dark else []
    seen, _ = open_page(page, folder, probe, flags=flags)
    assert seen["dark"] is dark
    return [json.dumps(one) for one in seen["violations"] if one["impact"] in ("serious", "critical")]
