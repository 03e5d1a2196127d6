from emnist_dali.core.files import MARK
from emnist_dali.reports.html import render


def test_a_page_is_marked_escaped_and_utf8():
    page = render("page.html", title='<b>"é\udc80').decode()
    assert f'<meta name="generator" content="{MARK}">' in page
    assert "<h1>&lt;b&gt;&#34;é\\udc80</h1>" in page
