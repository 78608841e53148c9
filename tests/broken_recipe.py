"""A recipe with a mistake of its own, for tests/test_run.py."""


def get_config():
    return {}["deep"]
