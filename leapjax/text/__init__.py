"""Text to token ids and back, from the files of a checkpoint alone."""

from leapjax.text.codec import TextCodec, load_codec
from leapjax.text.finish import finish

__all__ = ["TextCodec", "finish", "load_codec"]
