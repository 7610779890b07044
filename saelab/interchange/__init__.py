"""SAEs of other libraries, read from their files and written to them. What our SAE cannot hold exactly is refused.

`read` finds out by itself which library wrote a folder or file; `write` writes one that the library loads.
"""

from saelab.interchange.family import Description, Family, read, write

__all__ = ["Description", "Family", "read", "write"]
