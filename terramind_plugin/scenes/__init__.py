"""Whole scenes: read window by window, blended in a band of rows, written as it is finished."""
