"""All drawing: figures of scores, of comparisons and of scaling, as HTML with plotly and as SVG."""
