"""Device meshes and their collectives, hosts and their barriers, chips and slices."""
