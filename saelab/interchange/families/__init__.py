"""One library's files a file. A new family is one new file here, found by looking into this folder."""

from saelab.core.components import found_in

__getattr__ = found_in("saelab.interchange.family", "Family")
