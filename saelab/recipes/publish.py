"""`saelab publish`: a run on the Hugging Face hub."""

from saelab.interchange.hub import HubName
from saelab.runs.publish import publish


def publish_run(
    run: str,
    to: str,
    private: bool = False,
    also: list[str] | None = None,
    license: str | None = None,
    citation: str | None = None,
    dry_run: bool = False,
) -> None:
    """Publish a run on the hub, with a model card of what it was trained on, its scores and how to load it.

    Args:
        run: folder of a run or a saved SAE.
        to: repository on the hub, org/name; it is made if it is not there.
        private: make the repository private.
        also: libraries to write files for as well: sae_lens, dictionary_learning or sparsify.
        license: of the SAE, as the hub has them, such as mit.
        citation: how it is to be cited; by default a BibTeX entry of the repository.
        dry_run: write the files into a new folder, called like the repository, and upload nothing; settings go as they
            are, with the names of folders on this machine.
    """
    place = publish(run, to, private, also or (), license, citation, dry_run)
    print(f"{place}: README.md is the card" if dry_run else f'{place}: saelab.load("{HubName.of(to)}") opens it')
