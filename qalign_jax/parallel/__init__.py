"""Device meshes and the collectives that run over them."""
