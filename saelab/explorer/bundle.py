"""The modules in web/static as one classic script: a page opened from the disk may not load modules.

Each module becomes a function that is called once; `import { a } from "./b.js"` becomes `const { a } = ...` of what
that function gave back, and `import()` of a page's module a lookup. That is all it knows of JavaScript, and all that
our modules use.
"""

import re
from collections.abc import Iterable
from pathlib import Path

WEB = Path(__file__).parent / "web"
IMPORT = re.compile(r'^import \{([^}]*)\} from "\./([\w]+)\.js";$', re.MULTILINE)
EXPORT = re.compile(r"^export ((?:async )?function|const|class|let) (\w+)", re.MULTILINE)
DYNAMIC = "import(`./${page.module}.js`)"


def script(pages: Iterable[str]) -> str:
    """The frame and the named pages' modules with all that they need, those that others need first."""
    done: dict[str, str] = {}
    for name in (*pages, "main"):
        _take(name, done)
    return '"use strict";\n(() => {\nconst modules = {};\n' + "\n".join(done.values()) + "\n})();\n"


def _take(name: str, done: dict[str, str]) -> None:
    if name in done:
        return
    code = (WEB / "static" / f"{name}.js").read_text(encoding="utf-8")
    done[name] = ""  # a module that comes back to itself would be met here
    for found in IMPORT.finditer(code):
        _take(found[2], done)
    exports = [found[2] for found in EXPORT.finditer(code)]
    code = IMPORT.sub(lambda found: f"const {{{found[1].replace(' as ', ': ')}}} = modules.{found[2]};", code)
    code = EXPORT.sub(r"\1 \2", code).replace(DYNAMIC, "modules[page.module]")
    assert not re.search(r"\bimport\b", code), f"{name}.js imports in a way that is not known here"
    del done[name]
    done[name] = f"modules.{name} = (() => {{\n{code}\nreturn {{ {', '.join(exports)} }};\n}})();"
