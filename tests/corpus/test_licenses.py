import pytest
from nlm import FILE_LIST_HEAD

from biomedlm_jax.corpus.licenses import name_licenses, read_file_list, strictest
from biomedlm_jax.errors import InputError


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("http://creativecommons.org/licenses/by/2.0", ["CC BY"]),
        ("https://creativecommons.org/licenses/by-nc-nd/4.0/legalcode", ["CC BY-NC-ND"]),
        ("http://www.creativecommons.org/licences/by-nc-sa/3.0/igo/", ["CC BY-NC-SA"]),
        ("https://creativecommons.org/publicdomain/zero/1.0/", ["CC0"]),
        ("http://creativecommons.org/publicdomain/mark/1.0/", ["public domain"]),
        ("CC BY", ["CC BY"]),
        ("cc-by-nc", ["CC BY-NC"]),
        ("ccby", ["CC BY"]),
        ("CC BY-NC 4.0", ["CC BY-NC"]),
        ("CC0", ["CC0"]),
        ("cc-0", ["CC0"]),
        ("under the Creative Commons Attribution License, which permits", ["CC BY"]),
        ("Creative Commons Attribution-NonCommercial-NoDerivatives 4.0", ["CC BY-NC-ND"]),
        ("the Creative Commons Attribution Non-Commercial License", ["CC BY-NC"]),
        ("Creative Commons Attribution\u2013NonCommercial\u2013ShareAlike", ["CC BY-NC-SA"]),
        ("Creative Commons Attribution Non Commercial No Derivs licence", ["CC BY-NC-ND"]),
        ("CC BY; its data: http://creativecommons.org/publicdomain/zero/1.0/", ["CC0", "CC BY"]),
        ("open-access", []),
        ("All rights reserved. No commercial re-use.", []),
        ("accessible", []),
        ("http://www.elsevier.com/open-access/userlicense/1.0/", []),
    ],
)
def test_names(text, names):
    assert name_licenses(text) == names


def test_the_strictest_has_the_most_restrictions():
    assert strictest(["CC0", "CC BY"]) == "CC BY"
    assert strictest(["CC BY", "CC BY-NC", "CC BY-NC-ND", "CC BY-NC-SA"]) == "CC BY-NC-ND"
    assert strictest(["public domain", "CC0"]) == "CC0"
    assert strictest([]) == ""


ROWS = (
    "oa_package/08/e0/PMC13900.tar.gz,Breast Cancer Res. 2001 Nov 2; 3(1):55-60,PMC13900,"
    "2019-11-05 11:56:12,11250746,NO-CC CODE\n"
    'oa_package/b0/ac/PMC13901.tar.gz,"Breast, Cancer ""Res"". 2001",PMC13901,'
    "2019-11-05 11:56:12,11250747,CC BY\n"
    "oa_package/x/PMC7.tar.gz,J. 2001,PMC7,2019-11-05 11:56:12,,CC BY-NC\n"
    "oa_package/y/PMC13901.tar.gz,J. 2001,PMC13901,2020-11-05 11:56:12,,CC0\n"
)


def test_the_list_gives_the_licence_of_a_pmcid(tmp_path):
    path = tmp_path / "oa_file_list.csv"
    path.write_text("\ufeff" + FILE_LIST_HEAD + ROWS)
    licenses = read_file_list(path)
    assert len(licenses) == 3
    ids = ("PMC13900", "13901", "PMC7", "PMC8", "", "x", "PMC99999999999999999999")
    expected = ["NO-CC CODE", "CC0", "CC BY-NC", "", "", "", ""]
    assert [licenses.license_of(pmcid) for pmcid in ids] == expected


def test_the_lists_of_bulk_packages(tmp_path):
    path = tmp_path / "oa_comm_xml.PMC000xxxxxx.baseline.filelist.csv"
    path.write_text(
        "Article File,Article Citation,AccessionID,LastUpdated (YYYY-MM-DD HH:MM:SS),PMID,License,"
        "Retracted\nPMC000xxxxxx/PMC176545.xml,PLoS Biol. 2003,PMC176545,2023-08-01,12929205,"
        "CC BY,no\n"
    )
    assert read_file_list(path).license_of("PMC176545") == "CC BY"
    path.write_text(FILE_LIST_HEAD)
    assert len(read_file_list(path)) == 0
    assert read_file_list(path).license_of("PMC1") == ""


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"File,PMID\n", "a.csv:1: got the columns file, pmid; expected Accession ID and License"),
        (b"", "a.csv:1: got the columns ; expected"),
        (FILE_LIST_HEAD.encode() + b"a,b\n", "a.csv:2: got 2 columns: 'a, b'; expected 6, with a"),
        (FILE_LIST_HEAD.encode() + b"a,b,x1,c,d,e\n", "a.csv:2: got 6 columns.*; expected 6, with"),
        (FILE_LIST_HEAD.encode() + b"a,b\xff\n", "a.csv:2: expected UTF-8 text"),
        (FILE_LIST_HEAD.encode() + b"a,b\0\n", "a.csv:2: NUL character; expected UTF-8 text"),
        (FILE_LIST_HEAD.encode() + b'a,"b\n', "a.csv:2: no CSV"),
    ],
)
def test_other_files_are_refused(tmp_path, data, message):
    path = tmp_path / "a.csv"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message):
        read_file_list(path)


def test_the_list_is_small_in_memory(tmp_path):
    path = tmp_path / "a.csv"
    rows = (f"f{i},c,PMC{i},d,{i},{'CC BY' if i % 2 else 'CC0'}" for i in range(20_000, 0, -1))
    path.write_text(FILE_LIST_HEAD + "\n".join(rows))
    licenses = read_file_list(path)
    assert licenses._numbers.nbytes + licenses._codes.nbytes == 9 * 20_000
    assert [licenses.license_of(f"PMC{i}") for i in (1, 2, 20_000, 20_001)] == [
        "CC BY",
        "CC0",
        "CC0",
        "",
    ]
