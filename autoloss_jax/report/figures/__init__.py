"""The report's figures: SVG written by hand, coloured by the page's style sheet, light or dark."""
