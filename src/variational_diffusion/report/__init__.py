"""A run as one HTML page: what was measured, kept in the run, and the page made of it.

`measure` measures what is missing; `views` turns it into what the page shows; `page` writes the
page, without the data, so that it can be made again where they are gone.
"""

from variational_diffusion.report.measure import Report as Report
from variational_diffusion.report.measure import report as report
from variational_diffusion.report.page import check_replaceable as check_replaceable
from variational_diffusion.report.page import render as render
from variational_diffusion.report.page import write_page as write_page
from variational_diffusion.run.measurements import Section as Section
from variational_diffusion.run.measurements import read_section as read_section
from variational_diffusion.run.measurements import write_section as write_section
