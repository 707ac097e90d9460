"""The dashboard on the control port: what the models do now and did in the last hour, and the page that shows it."""
