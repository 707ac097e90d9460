"""What happens when something goes wrong: signals under load, clients that leave, models that fail, full queues."""
