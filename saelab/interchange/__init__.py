"""SAEs of other libraries, read from their files and written to them. What our SAE cannot hold exactly is refused.

`read` finds out by itself which library wrote a folder or file; `write` writes one that the library loads; `saebench`
gives the object that SAEBench evaluates.
"""

from saelab.interchange.family import Description, Family, read, write
from saelab.interchange.saebench import saebench

__all__ = ["Description", "Family", "read", "saebench", "write"]
