"""The report: figures and tables of a grid's results, those of the paper beside them."""

from apr.eval.report.write import write_report

__all__ = ["write_report"]
