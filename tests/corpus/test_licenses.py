import pytest

from biomedlm_jax.corpus.licenses import LicenseTable, allows, license_name, write_license_table

LONG = "Creative Commons Attribution"
NAMES = {
    "CC BY": "CC BY",
    "CC-BY": "CC BY",
    "cc-by-4.0": "CC BY 4.0",
    "CC BY-NC-ND": "CC BY-NC-ND",
    "cc by-nc-nd/4.0": "CC BY-NC-ND",
    "CC BY-NC-SA 3.0": "CC BY-NC-SA 3.0",
    "http://creativecommons.org/licenses/by/2.0": "CC BY 2.0",
    "https://creativecommons.org/licenses/by-nc-sa/4.0/legalcode": "CC BY-NC-SA 4.0",
    "CC0": "CC0",
    "https://creativecommons.org/publicdomain/zero/1.0/": "CC0",
    "https://creativecommons.org/publicdomain/mark/1.0/": "public domain",
    "Public Domain": "public domain",
    f"{LONG}-NonCommercial-NoDerivatives 4.0 International License": "CC BY-NC-ND 4.0",
    f"{LONG} Non-Commercial License": "CC BY-NC",
    f"{LONG}-ShareAlike 3.0": "CC BY-SA 3.0",
    f"Open access under the {LONG} License (https://creativecommons.org/licenses/by/4.0/), which "
    "permits unrestricted use": "CC BY 4.0",
    # The waiver is for the data.
    "http://creativecommons.org/licenses/by/2.0 http://creativecommons.org/publicdomain/zero/1.0/": "CC BY 2.0",  # noqa: E501
    "": "",
    "NO-CC CODE": "",
    "Elsevier user license": "",
    "CC BY or CC BY-NC": "",  # which of them is not stated
    "accbyx": "",
}


@pytest.mark.parametrize("published", NAMES)
def test_a_license_has_one_name(published):
    assert license_name(published) == NAMES[published]


def test_uses_that_licenses_allow():
    commercial = ["CC0", "public domain", "CC BY 4.0", "CC BY-SA 3.0", "CC BY-ND"]
    others = ["CC BY-NC", "CC BY-NC-SA 4.0", "CC BY-NC-ND"]
    assert all(allows(name, kind) for name in commercial for kind in ("commercial", "any"))
    assert all(allows(name, "non-commercial") for name in [*commercial, *others])
    assert not any(allows(name, "commercial") for name in [*others, ""])
    assert allows("", "any")
    assert not allows("", "non-commercial")


def test_table_of_licenses_by_pmcid(tmp_path):
    rows = [("PMC300", "CC BY-NC"), ("PMC7", "CC0"), ("PMC8", "NO-CC CODE"), ("PMC300", "CC BY")]
    write_license_table(tmp_path / "table.npy", rows)
    table = LicenseTable(tmp_path / "table.npy")
    assert [table.get(name) for name in ("PMC7", "PMC300", "PMC8", "PMC1", "PMC999")] == [
        *("CC0", "CC BY", "", "", ""),  # the last row of an article counts
    ]
