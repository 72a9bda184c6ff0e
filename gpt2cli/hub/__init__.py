"""The hub room: what is downloaded and from where, how its bytes come, and how they are checked."""
