"""segbench measures where in a multimodal LLM the ability to segment is lost and recovered, and what attention does."""

__version__ = "0.1.0"
