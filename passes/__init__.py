"""Schemes, the rewrites that they are composed of, and the fusion of replicas.

A scheme is found by being in `schemes/`: nothing lists them. The folder lies beside the package for readers and is
mapped into it by pyproject.toml; importing it under a second name would make every class exist twice, and is refused.
"""

if __name__ != "anytimeify.passes":
    raise ImportError(
        f"the folder passes/ was imported as '{__name__}': import it as 'anytimeify.passes', after pip install -e ."
    )
