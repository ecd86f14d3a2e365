"""Speech from espeak-ng, through its C library: that of the package espeakng-loader, which brings voices along.

Source of names and numbers: espeak-ng's header speak_lib.h, API revision 12.
"""

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.problems import DataError

_SYNCHRONOUS, _DONT_EXIT = 2, 0x8000
_RATE, _PITCH = 1, 3
_POS_CHARACTER, _CHARS_UTF8 = 1, 1
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Espeak:
    """The library, of which a process has one. Who asks for the same in the same order hears the same.

    Attributes:
        rate_hz: Samples a second.
    """

    def __init__(self) -> None:
        """Load library and voices.

        Raises:
            DataError: If it is not installed, or does not start.
        """
        try:
            import espeakng_loader
        except ImportError:
            raise DataError("speech comes from espeak-ng: pip install 'effnet[speech]'") from None
        self._library: Any = ctypes.CDLL(str(espeakng_loader.get_library_path()))
        self._library.espeak_Initialize.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
        self._library.espeak_Synth.argtypes = [
            *(ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint),
            *(ctypes.c_void_p, ctypes.c_void_p),
        ]
        self._library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
        folder = str(Path(espeakng_loader.get_data_path()).parent).encode()
        self.rate_hz: int = self._library.espeak_Initialize(_SYNCHRONOUS, 0, folder, _DONT_EXIT)
        if self.rate_hz <= 0:
            raise DataError(f"espeak-ng does not start with the voices in {folder.decode()}")
        self._parts: list[NDArray[np.int16]] = []
        self._callback = _CALLBACK(self._take)  # kept: the library has no more than its address
        self._library.espeak_SetSynthCallback(self._callback)

    def _take(self, samples: Any, count: int, _: object) -> int:
        if samples and count > 0:
            self._parts.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def say(self, text: str, *, voice: str, words_per_minute: int, pitch: int, seed: int) -> NDArray[np.int16]:
        """Speak.

        Args:
            text: What to say.
            voice: A language's identifier, with `+` and the name of a speaker: `gmw/en-US+m3`.
            words_per_minute: From 80 to 450.
            pitch: From 0 to 100 of the speaker's range; 50 is the middle.
            seed: Of the small fluctuations that make it less like a machine.

        Returns:
            (samples,), with the short silence that espeak-ng ends words with.

        Raises:
            DataError: If there is no such voice, or nothing came.
        """
        self._parts.clear()
        if self._library.espeak_SetVoiceByName(voice.encode()):
            raise DataError(f"espeak-ng has no voice {voice!r}")
        self._library.espeak_ng_SetRandSeed(seed)
        self._library.espeak_SetParameter(_RATE, words_per_minute, 0)
        self._library.espeak_SetParameter(_PITCH, pitch, 0)
        encoded = text.encode()
        failed = self._library.espeak_Synth(encoded, len(encoded) + 1, 0, _POS_CHARACTER, 0, _CHARS_UTF8, None, None)
        if failed or not self._parts:
            raise DataError(f"espeak-ng did not say {text!r} with the voice {voice!r}")
        return np.concatenate(self._parts)
