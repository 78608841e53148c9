"""Question-translation training for multilingual reasoning on TPUs (arXiv 2405.01345)."""
