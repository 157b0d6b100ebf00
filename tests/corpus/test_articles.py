from biomedlm_jax.corpus.articles import Article


def test_the_text_is_the_parts_that_there_are():
    parts = {"title": "A trial.", "body": "One.\n\nTwo."}
    assert Article("a.xml:1", "pmc", **parts).text == "A trial.\n\nOne.\n\nTwo."
    assert Article("a.xml:1", "pmc").text == ""
