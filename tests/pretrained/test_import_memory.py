import measure_import
import pytest


@pytest.mark.slow  # test_write.py counts the parameters in memory; this counts bytes of processes
def test_import_and_export_need_less_memory_than_a_checkpoint_and_a_third(tmp_path):
  found = measure_import.measure(tmp_path, (512, 16, 8, 2, 2048, 32000))
  assert all(result['ratio'] <= 1.3 for result in found.values()), found
