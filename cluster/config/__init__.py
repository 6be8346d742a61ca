"""A run's config: from YAML and overrides to a checked RunConfig.

1. files.py reads and extends YAML; loading.py applies overrides; run.py is the config; fields.py its documentation
2. absolute_paths.py: the same config for another process; errors.py says in the user's words what is wrong
"""
