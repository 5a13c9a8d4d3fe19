"""Posterior samplers compared on one problem, with the same prior, measurements and random numbers.

`build_problem` or `problem_of_run` makes a problem, `select_samplers` chooses what is compared,
`compare_samplers` yields a row for each, and `make_document` turns the rows into data. The data is
shown by `render_page`, `render_markdown`, `to_rich` and `write_figure`.
"""

from invem.bench.baseline import compare_with_baseline
from invem.bench.builtin import PROBLEMS, Definition, build_problem
from invem.bench.design import Design
from invem.bench.document import FLOOR, Row, make_document, read_document, write_document
from invem.bench.metrics import LEVELS, METRICS, Meaning
from invem.bench.page import render_page
from invem.bench.plots import check_figure_path, write_figure
from invem.bench.posterior import Posterior
from invem.bench.priors import IsotropicMixture
from invem.bench.problems import Problem, Truth, problem_of_run
from invem.bench.run import compare_samplers
from invem.bench.score import Value
from invem.bench.specs import Setting, parse_sampler, select_samplers, split_samplers
from invem.bench.statistics import coverage_curve, uniformity_gap
from invem.bench.table import render_markdown, to_rich

__all__ = [
    "FLOOR",
    "LEVELS",
    "METRICS",
    "PROBLEMS",
    "Definition",
    "Design",
    "IsotropicMixture",
    "Meaning",
    "Posterior",
    "Problem",
    "Row",
    "Setting",
    "Truth",
    "Value",
    "build_problem",
    "check_figure_path",
    "compare_samplers",
    "compare_with_baseline",
    "coverage_curve",
    "make_document",
    "parse_sampler",
    "problem_of_run",
    "read_document",
    "render_markdown",
    "render_page",
    "select_samplers",
    "split_samplers",
    "to_rich",
    "uniformity_gap",
    "write_document",
    "write_figure",
]
