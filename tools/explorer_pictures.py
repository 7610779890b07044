"""Take the pictures of docs/explorer.md:  python tools/explorer_pictures.py RUN OTHER [RESULT ...] --out docs/explorer

The runs must be collected (`saelab explore` does it). Pictures are what a headless Chromium shows, reduced to 96
colours so that they stay small.
"""

import argparse
import io
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from explorer.chromium import Chromium  # type: ignore[import-not-found]
from PIL import Image

from saelab.explorer.known import import_results
from saelab.explorer.serve import listening, server_for
from saelab.explorer.workspace import Workspace

TEXT = "import os\n\ndef read(path):\n    with open(path) as file:\n        return file.read()\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--latent", type=int, default=251)
    parser.add_argument("--out", type=Path, default=Path("docs/explorer"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    workspace = Workspace(options.folders)
    import_results(workspace)
    place = listening("127.0.0.1", 0)
    server = server_for(workspace, "127.0.0.1")
    serving = threading.Thread(target=server.run, kwargs={"sockets": [place]}, daemon=True)
    serving.start()
    base = f"http://127.0.0.1:{place.getsockname()[1]}"
    take_all(base, next(iter(workspace.members)), options.latent, options.out)
    server.should_exit = True
    serving.join()


def take_all(base: str, name: str, latent: int, out: Path) -> None:
    """Every picture, each page as it is once it has settled."""
    run = f"{base}/run/{name}"
    with Chromium(1180, 760) as browser:

        def take(file: str, address: str, until: str, dark: bool = False, width: int = 1180, act: str = "") -> None:
            browser.resize(width, 760 if width > 600 else 800, dark)
            browser.open(address)
            browser.until(until, 200)
            if act:
                browser.js(act)
            time.sleep(2)
            browser.picture(out / file)
            shrink(out / file)

        take("latents.png", f"{run}/latents?sort=score&desc=1", "document.querySelector('.vrow')")
        take("latent.png", f"{run}/latent/{latent}", "document.querySelector('.example')", dark=True)
        take("phone.png", f"{run}/latent/{latent}", "document.querySelector('.example')", width=390)
        steering = f"steer={latent}:add:1.5&n=12&token=1"
        asked = "&".join([steering, "text=" + TEXT.replace("\n", "%0A").replace(" ", "+").replace('"', "%22")])
        take("prompt.png", f"{run}/prompt?{asked}", "document.getElementById('said-steered')")
        plots = "document.querySelectorAll('.plot .main-svg').length"
        take("compare.png", f"{base}/compare", plots, act=below("What each latent adds"))
        around = f"(await (await fetch('/run/{name}/around.json?latent={latent}')).json()).latents.join()"
        latents = browser.js(f"(async () => {around})()")
        take(
            "manifolds.png",
            f"{run}/manifolds?latents={latents}",
            "document.querySelector('.plot canvas, .plot .gl-container') && document.querySelector('canvas.scatter')",
            act=below("Reconstructions of"),
        )
        take("run.png", run, plots)
        take("scaling.png", f"{base}/scaling", plots, act=below("Fitted laws"))


def below(title: str) -> str:
    """Scrolls to the panel of a title."""
    panel = f"[...document.querySelectorAll('.panel')].find(one => one.textContent.includes({title!r}))"
    return f"{panel}?.scrollIntoView({{block: 'center'}})"


def shrink(path: Path) -> None:
    """Fewer colours, so that a picture is tens of kilobytes."""
    data = io.BytesIO()
    with Image.open(path) as picture:
        picture.convert("RGB").quantize(96, dither=Image.Dither.NONE).save(data, "PNG", optimize=True)
    path.write_bytes(data.getvalue())


if __name__ == "__main__":
    main()
