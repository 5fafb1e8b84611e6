"""Being a Nix binary cache over HTTP, both ways, with pages for people."""
