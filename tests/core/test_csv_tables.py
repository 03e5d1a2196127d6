"""Tables of our own are replaced, a user's are not."""

from emnist_dali.core.csv_tables import replace_table


def test_a_table_is_replaced_and_removed(tmp_path):
    path = tmp_path / "metrics.csv"
    replace_table(path, "step", [{"step": 1, "loss": 0.5}, {"step": 2, "note": "a,b"}])
    assert path.read_text() == 'step,loss,note\n1,0.5,\n2,,"a,b"\n'
    replace_table(path, "step", [{"step": 3}])
    replace_table(path, "step", [{"step": 3, "loss": 1}])
    assert path.read_text() == "step,loss\n3,1\n"
    replace_table(path, "step", [])
    assert not path.exists()


def test_a_users_own_file_stays(tmp_path):
    path = tmp_path / "metrics.csv"
    for own in ("", "steps,loss\n", "my notes"):
        path.write_text(own)
        for rows in ([{"step": 1}], []):
            replace_table(path, "step", rows)
            assert path.read_text() == own
    path.unlink()
    path.mkdir()
    replace_table(path, "step", [{"step": 1}])
    replace_table(path, "step", [])
    assert path.is_dir()
