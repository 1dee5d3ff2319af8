"""What pages for the browser are made of: the head, a stranger's text, pictures."""

import base64
import html

import cv2
import numpy as np

HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><link rel="icon" href="data:,">
<style>{style}</style></head><body>"""


def png(image: np.ndarray) -> str:
    """A picture (H, W, C) uint8, RGB or grey, as PNG in base64 for a ``data:`` address."""
    _, data = cv2.imencode(".png", image if image.shape[-1] == 1 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return base64.b64encode(data).decode()


def count(number: int, noun: str) -> str:
    """A number with its noun: 1 picture, 1,200 pictures."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def visible(text: str) -> str:
    """Characters nobody sees, that turn the direction of writing, or that UTF-8 has not, are spelled out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def escaped(text: str) -> str:
    """A stranger's text as HTML, in element or attribute."""
    return html.escape(visible(text))
