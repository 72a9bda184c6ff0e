"""Downloads: the published files and their sources, the transfer, and the verification."""
