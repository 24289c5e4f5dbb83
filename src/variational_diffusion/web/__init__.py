"""A page in the browser about one model: `vdm serve`.

`uploads` reads what a browser sends, which may be anything; `studio` is what the page does, from
arrays to arrays, without a page; `page` is the page, of gradio.
"""

from variational_diffusion.web.studio import Studio as Studio
from variational_diffusion.web.uploads import MAX_BYTES as MAX_BYTES
from variational_diffusion.web.uploads import MAX_PIXELS as MAX_PIXELS
from variational_diffusion.web.uploads import read_upload as read_upload
