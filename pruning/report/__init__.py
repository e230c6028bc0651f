"""``sensai report``: what a run made, on one page with pictures. `facts` finds the figures, `pictures` draws them."""
