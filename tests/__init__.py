"""A package, so that no other one of this name on the path takes its place: torch-fidelity installs one."""
